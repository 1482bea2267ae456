print("the package has started", flush=True)
