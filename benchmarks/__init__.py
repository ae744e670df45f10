"""Speed and memory of neo_peft, compared with its peers: python -m benchmarks.peers"""
