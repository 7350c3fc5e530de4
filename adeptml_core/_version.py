"""The version of the distribution ``adeptml-core``; the build reads it from here."""

__version__ = "0.1.0"
