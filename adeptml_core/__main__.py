"""``python -m adeptml_core`` is ``adeptml``, for where no script is on the path."""

from adeptml_core.cli import main

if __name__ == "__main__":
    main()
