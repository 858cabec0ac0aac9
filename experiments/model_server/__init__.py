"""A development server with TF Serving's REST and gRPC interfaces, and a page."""
