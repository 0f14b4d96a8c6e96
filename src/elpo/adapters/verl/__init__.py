"""ELPO as a plug-in of verl 0.9: an agent loop that grows trees, a trainer with our advantage, our loss."""
