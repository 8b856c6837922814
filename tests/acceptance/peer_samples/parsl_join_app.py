import pathlib
from concurrent.futures import as_completed

import globus_compute_sdk as gc
import parsl

polaris_gce = gc.Executor(endpoint_id="ENDPOINT_ID")
perlmutter_gce = gc.Executor(endpoint_id="ENDPOINT_ID")


def pre_process(data):
    data = data.strip()
    return data


def analysis(data):
    data = data.upper()
    return data


@parsl.join_app
def run_pre_process(data):
    return perlmutter_gce.submit(pre_process, data)


@parsl.join_app
def run_analysis(data):
    return polaris_gce.submit(analysis, data)


@parsl.python_app
def post_process(data):
    data = f"<{data}>"
    return data


futures = []
dir_path = pathlib.Path("DIRECTORY/experiments")
with parsl.load():
    for file_path in dir_path.iterdir():
        data = file_path.read_text()
        futures.append(post_process(run_analysis(run_pre_process(data))))
    for f in as_completed(futures):
        print(f.result())
