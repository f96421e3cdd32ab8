"""Chat templates and conversations for make_text_goldens.py. The templates are in the forms that model families use."""

import datetime
import json

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# What real templates use beyond the above: macros, namespaces, loop controls, methods of Python's types, tojson, dates.
FEATURES = """{%- macro header(role) -%}
<|im_start|>{{ role }}
{% endmacro -%}
{%- set ns = namespace(count=0, last='') -%}
{%- if tools is not none and tools %}
{{ header('system') }}Today is {{ strftime_now("%d %b %Y") }}.
    {%- for tool in tools %}
        {{- "\\n" + tool | tojson }}
    {%- endfor %}
{{ tools | tojson(indent=2) }}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == 'ignored' %}{% continue %}{% endif %}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
    {%- set text = message['content'].strip() %}
    {%- if '</think>' in text %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- set ns.last = message.get('role', 'nobody') %}
    {%- if text.startswith('#') or text.endswith('?') %}
        {%- set text = text | upper if text is string else '' %}
    {%- endif %}
    {%- generation %}
    {{- header(message.role) + text + '<|im_end|>' }}
    {%- endgeneration %}
    {{- '\\n' }}
{%- endfor %}
{%- for key, value in {'count': ns.count, 'last': ns.last, 'flag': true, 'nothing': none}.items() %}
    {{- key ~ '=' }}{{ value }}{{ ', ' if not loop.last else '\\n' }}
{%- endfor %}
{%- for message in messages[::-1] %}
    {{- loop.index }}/{{ loop.length }} {{ message.role | capitalize }};
{%- endfor %}
{{- '%s' | format(messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length) }}
{{- documents is none }}{{ unknown_name is defined }}{{ missing }}
{%- if add_generation_prompt %}

    {{- header('assistant') }}
    {%- if enable_thinking is defined and enable_thinking is false %}<think>

</think>

    {% endif %}
{%- endif %}
"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "features": FEATURES}
NOW = 1764547200  # 2025-12-01 00:00:00 UTC

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a \"place\" <now> & then; d\u00e9j\u00e0 vu's \u4eca\u5929",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"default": 1.5}},
                           "required": ["city"], "nullable": None, "strict": True, "empty": {}, "none": []},
        },
    }
]

CONVERSATIONS = [
    [["user", "Hello, world!"]],
    [["system", "You answer briefly."], ["user", "  What does the function return?  "]],
    [["user", "1 + 1?"], ["assistant", " 2\n"], ["user", "今天天气很好 \U0001f600\n\n"]],
    [["user", "# title\n<think>no</think>\n\nyes"], ["assistant", ""], ["user", "tabs\t\tand <|im_ half|> tokens <"]],
    [["system", ""], ["user", "{{ bos_token }}{% for x in y %}"], ["assistant", "\"quotes\" \\ back"], ["user", "é"]],
]


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what training learns from; its body is rendered as it stands."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.If(jinja2.nodes.Const(True), body, [], [], lineno=lineno)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(form)


def compile_template(source):
    """An environment as transformers sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def render(source, conversation, add_generation_prompt, tokens, variables):
    messages = [{"role": role, "content": content} for role, content in conversation]
    context = {"tools": None, "documents": None, **variables, **tokens}
    return compile_template(source).render(messages=messages, add_generation_prompt=add_generation_prompt, **context)
