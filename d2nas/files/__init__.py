"""Files read with care: strict JSON, safetensors, text, folders with a manifest."""
