"""The intermediate representation: torch.fx graphs in our dialect. Knows no configuration and no compression method."""
