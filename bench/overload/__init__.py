"""What becomes of an origin that is offered more than it can do. `run` is all of it; `origin` is the
endpoint.
"""
