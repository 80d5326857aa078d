"""The compiler: graphs, passes and the machinery that checks them."""
