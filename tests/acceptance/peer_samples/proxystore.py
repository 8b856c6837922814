from globus_compute_sdk import Executor
from proxystore.connectors.file import FileConnector
from proxystore.store import Store

Bar = bytearray

def foo(value: Bar) -> None:
    assert isinstance(value, Bar)
    return len(value)

with Executor(endpoint_id="ENDPOINT_ID") as gce:
    with Store('demo', FileConnector('DIRECTORY/store')) as store:
        value = Bar(20_000_000)
        proxy = store.proxy(value)
        future = gce.submit(foo, proxy)
        print(future.result())
