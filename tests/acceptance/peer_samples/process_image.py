def process_image(input_file):
    import os
    from PIL import Image
    image = Image.open(input_file)
    image.thumbnail((200, 200))
    image.save(f"small-{os.path.basename(input_file)}")
    return image.size

# Register the function with the Globus Compute service
from globus_compute_sdk import Client
gc_client = Client()
my_function = gc_client.register_function(process_image)
campus_cluster = "ENDPOINT_ID"
purdue_anvil_access = "ENDPOINT_ID"
# Run code on Campus Cluster
my_campus_task = gc_client.run('DIRECTORY/image.png', endpoint_id=campus_cluster, function_id=my_function)
# Run code on Anvil supercomputer at Purdue
my_anvil_task = gc_client.run('DIRECTORY/image.png', endpoint_id=purdue_anvil_access, function_id=my_function)

import time
while any(task["pending"] for task in (gc_client.get_task(my_campus_task), gc_client.get_task(my_anvil_task))):
    time.sleep(0.2)
print(gc_client.get_result(my_campus_task), gc_client.get_result(my_anvil_task))
