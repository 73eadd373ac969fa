"""``python -m freqformer`` is the command ``freqformer``."""

from .cli import main

if __name__ == "__main__":
    main()
