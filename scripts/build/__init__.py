"""Builds and checks of the native extension, and the set-up of the environment."""
