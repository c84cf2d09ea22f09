"""Transforms: callables that take a `loaders.sample.OccSample` and return it, filled."""
