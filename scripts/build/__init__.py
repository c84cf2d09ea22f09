"""Builds and checks of the native extension, set-up of the environment."""
