"""``python -m gdrq_mm VERB`` and ``torchrun -m gdrq_mm VERB``."""
from .cli import main

if __name__ == '__main__':
    main()
