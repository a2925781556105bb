# Registers this project's modules before anything is built.
custom_imports = dict(imports=['gdrq_mm'], allow_failed_imports=False)
