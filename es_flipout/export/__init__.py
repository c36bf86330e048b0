"""A trained policy as one file for other code: ONNX, or a program of torch.export."""
