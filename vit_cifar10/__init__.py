"""The code behind train.py, test.py and compare.py. The networks themselves are in model.py."""
