"""The model side of the code base, from batch to predictions. Importing this package does nothing.

``models.ops`` holds the native operations (torch alone), ``models.register`` imports every
registered model part.
"""
