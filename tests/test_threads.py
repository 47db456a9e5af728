"""One thread for what is small, and as many as before afterwards."""

import pytest
import torch

from imprint.threads import one_thread


def test_the_number_of_threads_comes_back_also_after_an_error():
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
