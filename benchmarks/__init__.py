"""What neo_peft costs beside its peers: python -m benchmarks.peers"""
