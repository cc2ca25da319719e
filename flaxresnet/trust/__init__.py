"""How far a network's answers can be trusted."""
