"""An in-container training runtime: configuration in, trained model out."""

__version__ = "0.1.0"
