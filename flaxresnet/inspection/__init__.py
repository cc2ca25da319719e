"""Looking at a network: its summary and its diagram."""
