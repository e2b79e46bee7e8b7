"""Late interaction: a vector for every token of queries and documents, compared by MaxSim."""
