"""`perfusion web` as a Hugging Face Space: the host says where to listen (GRADIO_SERVER_NAME, GRADIO_SERVER_PORT)."""

from perfusion.web.app import build, serve
from perfusion.web.command import configuration

serve(build(configuration([])), host=None, port=None)
