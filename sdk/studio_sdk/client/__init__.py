"""The federated client: keeps one stream to a combiner, works on what it is asked for, uploads the results."""
