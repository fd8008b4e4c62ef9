"""Convert a Hugging Face folder to a GGUF file: `convert_folder`."""

from graphrt.models.convert.folder import ConversionReport, convert_folder

__all__ = ["ConversionReport", "convert_folder"]
