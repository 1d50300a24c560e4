"""What a client meets.

app.py       builds the graph for `serve run`
ingress.py   the gateway as a deployment: application, middleware, error handlers
routes/      one file for each group of addresses
validation/  reads a request's body, checks it, and brings it into the engine's form
gateway/     admits a request and relays it to the engine
cache/       answers that are given again without an engine
telemetry/   what is known, logged and counted of requests
protocol/    what may be asked, and how a request is refused
launcher/    starts and stops the server on this machine
cli/         the command line
doctor/      what is wrong with this machine
client/      the Python client
console/     the web page
docs/        the pages at /docs
"""
