"""`make bench`: fxhlo beside its peers, measured in one run on this machine."""
