"""Search: which shape every sublayer gets, so that a budget holds at the least loss of value."""
