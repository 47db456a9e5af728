"""The former name of `training.contact_sheets`, for one release."""

from .arguments import warn_renamed
from .contact_sheets import main

if __name__ == "__main__":
    warn_renamed("training.sheets", "training.contact_sheets")
    main()
