"""The former name of `training.merge`, for one release."""

from .arguments import warn_renamed
from .merge import main

if __name__ == "__main__":
    warn_renamed("training.soup", "training.merge")
    main()
