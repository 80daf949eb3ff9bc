"""One pass over data: how often each subcomponent fires, on what, with whom, and what follows."""
