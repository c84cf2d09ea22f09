"""Transforms: callables that take a :class:`loaders.sample.OccSample` and return it, filled."""
