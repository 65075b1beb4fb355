"""The paper's tables, each with our numbers beside the published ones."""
