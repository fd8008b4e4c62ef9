"""Two tiny trained models, `tiny-deepseek2.gguf` and `tiny-mixtral.gguf`, and the script that trains them."""
