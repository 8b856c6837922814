# Function that estimates pi
def pi(num_points):
    from random import random
    inside = 0
    for i in range(num_points):
        x, y = random(), random()
        if x**2 + y**2 < 1:
            inside += 1
    return (inside*4 / num_points)

# Register function with Globus Compute
from globus_compute_sdk import Client, Executor
gc_client = Client()
my_function = gc_client.register_function(pi)
gce = Executor(endpoint_id="ENDPOINT_ID")

# Execute the function N times
N = 1000
estimates = [
    gce.submit(pi, 10**3)
    for _ in range(N)
]
# Get the results and calculate the total
results = [est.result() for est in estimates]
print(f"{sum(results) / N:.1f}")
