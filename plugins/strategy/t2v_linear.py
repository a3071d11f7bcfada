"""ansible's linear strategy, with less work for each task."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from copy import copy
from pathlib import Path

import ansible.plugins.loader
import ansible.plugins.strategy
import ansible.vars.manager
from ansible import constants
from ansible.collections.list import list_collection_dirs
from ansible.config.manager import ConfigManager
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.executor.task_executor import TaskExecutor
from ansible.executor.task_result import TaskResult
from ansible.plugins.connection.ssh import Connection as Ssh
from ansible.plugins.strategy.linear import StrategyModule as Linear
from ansible.template import Templar
from ansible.utils.path import unfrackpath
from ansible.utils.unsafe_proxy import AnsibleUnsafe, wrap_var
from ansible.vars.manager import VariableManager

try:
    from ansible.template import AnsibleEnvironment, JinjaPluginIntercept
    from ansible.vars.fact_cache import FactCache
except ImportError:
    AnsibleEnvironment = JinjaPluginIntercept = FactCache = None

_EXECUTOR = [
    "self",
    "host",
    "task",
    "job_vars",
    "play_context",
    "new_stdin",
    "loader",
    "shared_loader_obj",
    "final_q",
    "variable_manager",
]
# Of ansible-core 2.16 and 2.17; with others all is as Ansible does it.
_KNOWN = (
    AnsibleEnvironment is not None
    and list(inspect.signature(TaskExecutor.__init__).parameters) == _EXECUTOR
)

try:
    if not _KNOWN or os.environ.get("T2V_MITOGEN") == "0":
        raise ImportError
    import ansible_mitogen.affinity
    import ansible_mitogen.loaders
    import ansible_mitogen.planner
    import ansible_mitogen.process
    import ansible_mitogen.strategy
    import ansible_mitogen.transport_config
    import mitogen.unix
except ImportError:
    ansible_mitogen = None

DOCUMENTATION = """
name: t2v_linear
short_description: The linear strategy with less work for each task
description:
  - Runs tasks in the order and at the pace of C(ansible.builtin.linear), and says the same.
  - Where the Python package C(mitogen) is installed beside ansible-core 2.16 or 2.17, the hosts'
    Python stays loaded between tasks. Elsewhere, and with C(0) in the environment variable
    E(T2V_MITOGEN), tasks reach the hosts as always.
  - A host is logged in to by Ansible's own C(ssh), whose first task asks whatever is to be asked
    (passphrases, C(SSH_ASKPASS)) and whose first module finds Python; Mitogen then goes through
    that connection.
  - C(raw), C(reboot), C(wait_for_connection), the package managers, and tasks that are delegated or
    asynchronous do not go through Mitogen, so that a new login is one.
  - Common modules (C(command), C(copy), C(file), C(stat), C(systemd), C(template) and the like) are
    run over Mitogen by threads, not by a process for each task and host. C(0) in the environment
    variable E(T2V_THREADS) has the processes back.
  - Tasks that no host is needed for (C(assert), C(set_fact), C(include_tasks) and the like, and
    those whose condition is false) are done without a process of their own, and a template is
    compiled once.
author: sanchuang.t2v maintainers
"""


def _builtin(*names):
    return {
        word
        for name in names
        for word in (name, f"ansible.builtin.{name}", f"ansible.legacy.{name}")
    }


# They ask for no host's Python, or for a connection that is new; or start themselves anew with the
# bindings of the package manager, which they have just installed.
_PLAIN = _builtin(
    "apt",
    "apt_repository",
    "dnf",
    "dnf5",
    "package",
    "package_facts",
    "raw",
    "reboot",
    "wait_for_connection",
    "yum",
)
# They ask a host and keep nothing here that another task could meet.
_THREADED = _builtin(
    "blockinfile",
    "command",
    "copy",
    "file",
    "find",
    "gather_facts",
    "getent",
    "group",
    "hostname",
    "lineinfile",
    "replace",
    "script",
    "setup",
    "shell",
    "slurp",
    "stat",
    "systemd",
    "systemd_service",
    "template",
    "uri",
    "user",
) | {"community.docker.docker_container", "community.docker.docker_image_info"}
# They only compute.
_LOCAL = _builtin(
    "assert",
    "debug",
    "fail",
    "include_role",
    "include_tasks",
    "include_vars",
    "set_fact",
    "validate_argument_spec",
)


# What these set must be a copy: two variables that are one list would change together.
_SETTING = _builtin("include_vars", "set_fact")

# Jinja works out what has constant arguments when it compiles; these say something else each time.
_CHANGING = re.compile("random|shuffle|password|hash|vault|strftime")
# What Ansible adds to a task's variables when it knows the connection and whom it is delegated to.
_OF_CONNECTION = {"ansible_delegated_vars"}.union(
    *getattr(constants, "MAGIC_VARIABLE_MAPPING", {}).values()
)
_OPTIONS = (
    "block_start_string",
    "block_end_string",
    "variable_start_string",
    "variable_end_string",
    "comment_start_string",
    "comment_end_string",
    "trim_blocks",
    "lstrip_blocks",
    "newline_sequence",
    "keep_trailing_newline",
    "autoescape",
)
_compiled = {}
# Hosts that a task has gone to.
_logged_in = set()
# What came of the conditions of the task that is being started, where they were asked for.
_verdict = None
_compile = getattr(AnsibleEnvironment, "compile", None)


def _compile_once(self, source, name=None, filename=None, raw=False, defer_init=False):
    """The code of a template, which every host and task would otherwise make anew."""
    if not isinstance(source, str) or raw or name or filename or _CHANGING.search(source):
        return _compile(self, source, name, filename, raw, defer_init)
    key = (
        str(source),
        type(self),
        defer_init,
        tuple(self.extensions),
        *(getattr(self, option) for option in _OPTIONS),
    )
    if key not in _compiled:
        _compiled[key] = _compile(self, source, name, filename, raw, defer_init)
    return _compiled[key]


# Filters and tests that are Jinja's own, by the type of the loader that was asked for them.
_jinja_own = {}
_intercept = getattr(JinjaPluginIntercept, "__init__", None)


def _intercept_own(self, delegatee, pluginloader, *args, **kwargs):
    """Look for no plugin of such a name again: each task and host would search all folders."""
    _intercept(self, delegatee, pluginloader, *args, **kwargs)
    kind = pluginloader.type
    if kind not in _jinja_own:
        _jinja_own[kind] = {name for name in delegatee if not _is_plugin(pluginloader, name)}
    self._seen_it |= _jinja_own[kind]


def _is_plugin(loader, name):
    try:
        return loader.get(name) is not None
    except (AnsibleError, KeyError):
        return False


class _Facts(dict, AnsibleUnsafe):
    """The facts of a host, marked as unsafe once, not for each task.

    ``own``: the same by their short names, as ``ansible_facts`` has them.
    """


_facts_known = {}
# Threads read the facts of all hosts while those of one are set.
_facts_lock = threading.RLock()
_fact_get = getattr(FactCache, "get", None)
_fact_set = getattr(FactCache, "__setitem__", None)
_fact_delete = getattr(FactCache, "__delitem__", None)
_set_host_facts = VariableManager.set_host_facts
_namespace_facts = getattr(ansible.vars.manager, "namespace_facts", None)


def _get_facts(self, key, default=None):
    with _facts_lock:
        known = _facts_known.get(key)
        if known is None:
            facts = _fact_get(self, key)
            if facts is None:
                return default
            known = _facts_known[key] = _Facts(wrap_var(facts))
            known.own = _namespace_facts(known)["ansible_facts"]
        return known


def _set_facts(self, key, value):
    with _facts_lock:
        _fact_set(self, key, value)
        _facts_known.pop(key, None)


def _delete_facts(self, key):
    with _facts_lock:
        _facts_known.pop(key, None)
        _fact_delete(self, key)


def _add_facts(self, host, facts):
    with _facts_lock:
        _set_host_facts(self, host, facts)


def _namespace_known(facts):
    return {"ansible_facts": facts.own.copy()} if type(facts) is _Facts else _namespace_facts(facts)


_plugin_options = getattr(ConfigManager, "get_plugin_options", None)
# By which words an option may be given, and what it is where none of them is.
_option_words = {}
_option_plain = {}


def _words(option, definition):
    """Names of variables and of keywords; None where each asking may get another answer."""
    templated = isinstance(default := definition.get("default"), str) and "{{" in default
    if templated or str(definition.get("type")).startswith(("tmp", "temp")):
        return None
    return (
        {variable["name"] for variable in definition.get("vars") or ()},
        {keyword["name"] for keyword in definition.get("keyword") or ()}.union(
            [option], definition.get("aliases") or ()
        ),
    )


def _options_once(self, plugin_type, name, keys=None, variables=None, direct=None):
    """The options of a plugin; each task would ask the environment and ansible.cfg for all anew."""
    options = {}
    for option, definition in self.get_configuration_definitions(plugin_type, name).items():
        key = (self, plugin_type, name, option)
        if key not in _option_words:
            _option_words[key] = _words(option, definition)
        words = _option_words[key]
        if words is None or not (
            # In this order it goes over the few words, not over all variables.
            (variables or {}).keys().isdisjoint(words[0])
            and words[1].isdisjoint(keys or ())
            and words[1].isdisjoint(direct or ())
        ):
            given = (keys, variables, direct)
            options[option] = self.get_config_value(option, None, plugin_type, name, *given)
            continue
        if key not in _option_plain:
            _option_plain[key] = self.get_config_value(option, None, plugin_type, name)
        options[option] = copy(_option_plain[key])
    return options


class _Watching(dict):
    """Variables of a task that notice when they are asked for what only its connection knows."""

    asked = False

    def __contains__(self, key):
        found = super().__contains__(key)
        if not found and key in _OF_CONNECTION:
            _Watching.asked = True
        return found


def _own(task, verdict=None):
    """A task whose attributes may become values: the next host has others.

    With a verdict its conditions are not evaluated once more.
    """
    own = task.copy(exclude_parent=True, exclude_tasks=True)
    own._parent = task._parent
    if verdict is not None:
        own.evaluate_conditional_with_result = lambda templar, all_vars: verdict
    return own


class _NeedsHost(BaseException):
    """A task that was thought to be skipped is not."""


class _Skipping(TaskExecutor):
    """Comes to the result of a task that is skipped, and to none of any other."""

    def _run_loop(self, items):
        raise _NeedsHost

    def _get_connection(self, *args, **kwargs):
        raise _NeedsHost


def _do(kind, host, own, task_vars, play_context, loader, final_q, manager):
    """The result of a task that is done in this process."""
    with Path(os.devnull).open() as nothing:
        return kind(
            host,
            own,
            task_vars.copy(),
            play_context,
            nothing,
            loader,
            ansible.plugins.loader,
            final_q,
            manager,
        ).run()


class Local(Linear):
    """Linear, without a process for a task that no host is needed for."""

    # The last task that was skipped, by its id, and its fields.
    _skipped = (None, None)

    def run(self, iterator, play_context, result=0):
        """Run a play's tasks."""
        if not _KNOWN:
            return super().run(iterator, play_context)
        plugins = ansible.plugins.loader
        # What almost every task needs is not loaded by each anew.
        for action in ("normal", "copy"):
            plugins.action_loader.get(f"ansible.legacy.{action}", class_only=True)
        kind = plugins.lookup_loader.get("ansible.builtin.template", class_only=True)
        lookup = sys.modules[kind.__module__]
        copied = lookup.deepcopy
        AnsibleEnvironment.compile = _compile_once
        JinjaPluginIntercept.__init__ = _intercept_own
        # It adds some to a host's variables, as the action does, which copies only the outermost.
        lookup.deepcopy = copy
        ConfigManager.get_plugin_options = _options_once
        _facts_known.clear()
        FactCache.get, FactCache.__setitem__ = _get_facts, _set_facts
        FactCache.__delitem__ = _delete_facts
        VariableManager.set_host_facts = _add_facts
        ansible.vars.manager.namespace_facts = _namespace_known
        try:
            return super().run(iterator, play_context)
        finally:
            ConfigManager.get_plugin_options = _plugin_options
            FactCache.get, FactCache.__setitem__ = _fact_get, _fact_set
            FactCache.__delitem__ = _fact_delete
            VariableManager.set_host_facts = _set_host_facts
            ansible.vars.manager.namespace_facts = _namespace_facts
            AnsibleEnvironment.compile = _compile
            JinjaPluginIntercept.__init__ = _intercept
            lookup.deepcopy = copied

    def _queue_task(self, host, task, task_vars, play_context):
        global _verdict
        if _KNOWN:
            _verdict = self._judge(task, task_vars)
            if self._done_here(host, task, task_vars, play_context):
                return
        if not task.delegate_to:
            _logged_in.add(host.name)
        # The process of the task ends before it has anything to collect; looking for it would copy
        # all memory that it shares with this one.
        gc.disable()
        try:
            super()._queue_task(host, task, task_vars, play_context)
        finally:
            gc.enable()

    def _done_here(self, host, task, task_vars, play_context):
        if task.action in _LOCAL:
            kind = TaskExecutor
        elif not _verdict[0] if _verdict else self._without_items(task, task_vars):
            kind = _Skipping
        else:
            return False
        # Each item of a loop is reported while it runs, by what is kept here.
        self._queued_task_cache[host.name, task._uuid] = {
            "host": host,
            "task": task,
            "task_vars": task_vars,
            "play_context": play_context,
        }
        # Nothing of it is a template that the result would have to show.
        if _verdict and not task.delegate_to and isinstance(task.no_log, bool):
            self._skip(host, task)
            return True
        own = _own(task, _verdict)
        if kind is TaskExecutor:
            self._tqm.send_callback("v2_runner_on_start", host, task)
        given = (self._loader, self._final_q, self._variable_manager)
        try:
            result = _do(kind, host, own, task_vars, play_context, *given)
        except _NeedsHost:
            del self._queued_task_cache[host.name, task._uuid]
            return False
        # As the copy is that Ansible makes of a result that comes out of its queue.
        own._finalized = True
        if kind is _Skipping:
            self._tqm.send_callback("v2_runner_on_start", host, task)
        self._pending_results += 1
        self.take(host, own, result, own.dump_attrs())
        return True

    def _skip(self, host, task):
        """Report what TaskExecutor would; for all hosts the task's fields are the same."""
        if self._skipped[0] != task._uuid:
            self._skipped = (task._uuid, task.dump_attrs())
        result = {
            "changed": False,
            "skipped": True,
            "skip_reason": "Conditional result was False",
            "false_condition": _verdict[1],
            "_ansible_no_log": task.no_log,
        }
        self._tqm.send_callback("v2_runner_on_start", host, task)
        self._pending_results += 1
        self.take(host, task, result, self._skipped[1])

    def take(self, host, own, result, fields):
        """Take the result of a task that was done in this process.

        Through the queue it comes as a copy, and behind the items of its loop and its attempts.
        """
        said = own.loop_with or own.loop is not None or own.until or own.retries
        if said or own.action in _SETTING or "apply" in own.args:
            self._final_q.send_task_result(host.name, own._uuid, result, fields)
            return
        with self._results_lock:
            self._results.append(TaskResult(host, own, result, fields))

    def _judge(self, task, task_vars):
        """(whether the task is to be done, the condition that says no).

        None where each item has its own conditions, where they ask what only the connection knows,
        and of wrong ones.
        """
        if task.action in _LOCAL or task.loop_with or task.loop is not None or not task.when:
            return None
        # As Ansible has them when it judges: files are looked for where the task stands.
        searched = task.get_search_path()
        if self._loader.get_basedir() not in searched:
            searched.append(self._loader.get_basedir())
        variables = _Watching(task_vars, ansible_search_path=searched)
        templar = Templar(loader=self._loader, variables=variables)
        _Watching.asked = False
        try:
            verdict = task.evaluate_conditional_with_result(templar, variables)
        except Exception:
            return None
        return None if _Watching.asked else verdict

    def _without_items(self, task, task_vars):
        """Whether the task loops over nothing; wrong loops are not judged here."""
        if task.loop_with or task.loop is None:
            return False
        try:
            return Templar(loader=self._loader, variables=task_vars).template(task.loop) == []
        except Exception:
            return False


if ansible_mitogen is None:
    StrategyModule = Local
else:
    # Its own would bind all of Ansible but one process to one processor where there are two.
    ansible_mitogen.affinity.policy = ansible_mitogen.affinity.Policy()
    _redirected = ansible_mitogen.strategy.wrap_connection_loader__get_with_context
    _plain = False

    def _connection(name, *args, **kwargs):
        plain = _plain and not isinstance(threading.current_thread(), _Thread)
        if plain or name != "ssh":
            return ansible_mitogen.loaders.connection_loader__get_with_context(
                name, *args, **kwargs
            )
        return _redirected(name, *args, **kwargs)

    ansible_mitogen.strategy.wrap_connection_loader__get_with_context = _connection

    # Its processes wait for each other and would stay for ever where ansible-playbook is killed.
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
    _PR_SET_PDEATHSIG = 1
    os.register_at_fork(after_in_child=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))

    # One that is killed leaves its sockets where Ansible leaves its own files, not in /tmp.
    _socket_path = mitogen.unix.make_socket_path
    _LONGEST_SOCKET_PATH = 107

    def _own_socket_path():
        path = _socket_path()
        own = Path(constants.DEFAULT_LOCAL_TMP, Path(path).name)
        return str(own) if len(bytes(own)) <= _LONGEST_SOCKET_PATH else path

    mitogen.unix.make_socket_path = _own_socket_path

    # Only the first that runs a collection's module names the folders where it is looked for; where
    # each had a process of its own, each was the first.
    _invoke = ansible_mitogen.planner.invoke
    _collections = functools.cache(lambda: [path.decode() for path in list_collection_dirs()])

    def _invoke_with_collections(invocation):
        if not invocation.module_name.startswith(("ansible.builtin.", "ansible.legacy.")):
            invocation._extra_sys_paths.update(_collections())
        return _invoke(invocation)

    ansible_mitogen.planner.invoke = _invoke_with_collections

    # A host that loses its power is noticed within a minute, as by ssh_args; its own are 300 s.
    def _keep_alive(name, default):
        given = getattr(ansible_mitogen.transport_config.PlayContextSpec, name)
        setattr(
            ansible_mitogen.transport_config.PlayContextSpec,
            name,
            lambda self: given(self) or default,
        )

    _keep_alive("mitogen_ssh_keepalive_interval", 15)
    _keep_alive("mitogen_ssh_keepalive_count", 4)

    class _Thread(threading.Thread):
        """Does a task in this process, and looks like Ansible's process that would do it.

        Most of what a forked process costs is memory that it and this one then write to.
        """

        exitcode = None

        def __init__(self, take, final_q, task_vars, host, task, play_context, loader, manager, *_):
            super().__init__(daemon=True, name=f"{host.name}: {task.action}")
            self._take = take
            self._host = host
            self._own = _own(task, _verdict)
            self._given = (task_vars, play_context, loader, final_q, manager)

        def run(self):
            try:
                result = _do(TaskExecutor, self._host, self._own, *self._given)
                self._own._finalized = True
            except AnsibleConnectionFailure:
                result = {"unreachable": True}
            except BaseException:
                result = self._failed()
            try:
                self._take(self._host, self._own, result, self._own.dump_attrs())
            except Exception:
                # What can't be sent is a failure. After an interrupt nobody listens any more.
                with contextlib.suppress(Exception):
                    self._take(self._host, self._own, self._failed(), {})

        def _failed(self):
            return {"failed": True, "exception": traceback.format_exc(), "stdout": ""}

        def terminate(self):
            """A thread ends with its process."""

    class _Threads:
        """Where the tasks of a play are done: in a thread, or in a process of Ansible's kind.

        None is forked while a thread runs, of a task or of Mitogen: what such a thread had locked
        would stay locked in the process.
        """

        def __init__(self, process, model, take):
            self._process = process
            self._take = take
            self._load = load = ansible.plugins.loader.PluginLoader._load_module_source
            self._model = model
            self._close = model.on_binding_close
            self._get = model.get_binding
            self._pid = os.getpid()
            self._lock = threading.Lock()
            self._running = []
            model.on_binding_close = self._keep
            model.get_binding = self._shared
            loading = threading.RLock()

            # Else a second thread would get a plugin that the first has not loaded to its end.
            def load_once(loader, name, path):
                with loading:
                    return load(loader, name, path)

            ansible.plugins.loader.PluginLoader._load_module_source = load_once

        def _keep(self):
            if os.getpid() != self._pid:
                self._close()

        def _shared(self, name):
            with self._lock:
                return self._get(name)

        def end(self, wait=True):
            """Wait for all threads, and let Mitogen's of this process end, which no exit does."""
            for thread in self._running if wait else ():
                thread.join()
            self._running = []
            self._close()

        def restore(self, wait):
            """Let others have the model again; after an interrupt without the threads' results."""
            self.end(wait)
            del self._model.on_binding_close, self._model.get_binding
            ansible.plugins.loader.PluginLoader._load_module_source = self._load

        def __call__(self, final_q, task_vars, host, task, *more):
            if _in_thread(task, task_vars):
                if self._model.broker is None:
                    # By default one ends with the thread that made it.
                    self._model.broker = ansible_mitogen.process.Broker(install_watcher=False)
                self._running = [thread for thread in self._running if thread.is_alive()]
                thread = _Thread(self._take, final_q, task_vars, host, task, *more)
                self._running.append(thread)
                return thread
            self.end()
            return self._process(final_q, task_vars, host, task, *more)

    def _in_thread(task, task_vars):
        kind = task_vars.get("ansible_connection") or task.connection
        # A time-out is a signal, which only the first thread of a process gets.
        return not _plain and task.action in _THREADED and kind == "ssh" and not task.timeout

    _interpreter = constants.config.get_config_value("INTERPRETER_PYTHON")

    def _has_python(task_vars):
        """Whether it is known; Mitogen would log in once for each that might be there."""
        given = task_vars.get("ansible_python_interpreter") or _interpreter
        found = "discovered_interpreter_python" in task_vars["ansible_facts"]
        return found or not str(given).startswith("auto")

    # Mitogen's ssh asks nobody. It goes through the connection that Ansible's keeps open, which may
    # have asked, and logs in by itself where none is open.
    _ssh_args = ansible_mitogen.transport_config.PlayContextSpec.ssh_args

    def _shared(self):
        """The arguments with which ssh finds the socket of Ansible's own connection."""
        given = _ssh_args(self)
        words = " ".join(given).lower()
        if "controlpersist" not in words:
            return given
        shared = ["-o", "ControlMaster=no"]
        if "controlpath" not in words:
            option = self._connection_option
            path = option("control_path") or Ssh._create_control_path(
                option("host"), option("port"), option("remote_user")
            )
            folder = unfrackpath(option("control_path_dir"))
            shared += ["-o", f'ControlPath="{path % {"directory": folder}}"']
        return shared + given

    ansible_mitogen.transport_config.PlayContextSpec.ssh_args = _shared

    class StrategyModule(ansible_mitogen.strategy.StrategyMixin, Local):
        """The same over Mitogen."""

        def run(self, iterator, play_context, result=0):
            """Run a play's tasks."""
            strategy = ansible.plugins.strategy
            process = strategy.WorkerProcess
            model = ansible_mitogen.process.get_classic_worker_model()
            # With more than one of Mitogen's processes, hosts would take turns at one connection.
            if os.environ.get("T2V_THREADS") != "0" and len(model._muxes) == 1:
                strategy.WorkerProcess = _Threads(process, model, self.take)
            ended = False
            try:
                result = super().run(iterator, play_context, result)
                ended = True
                return result
            finally:
                if strategy.WorkerProcess is not process:
                    strategy.WorkerProcess.restore(wait=ended)
                    strategy.WorkerProcess = process

        def _queue_task(self, host, task, task_vars, play_context):
            global _plain
            # Mitogen asks the wrong host for the Python of one that a task is delegated to. The
            # process of the task is forked below, and has this.
            _plain = bool(
                task.action in _PLAIN
                or task.delegate_to
                or task.async_val
                or host.name not in _logged_in
                or not _has_python(task_vars)
            )
            try:
                super()._queue_task(host, task, task_vars, play_context)
            finally:
                _plain = False

        def _execute_meta(self, task, play_context, iterator, target_host):
            global _plain
            if task.args.get("_raw_params") == "reset_connection":
                # Ansible's own too: what it keeps open would let in whoever a new login would not.
                _logged_in.discard(target_host.name)
                _plain = True
                try:
                    super()._execute_meta(task, play_context, iterator, target_host)
                finally:
                    _plain = False
            return super()._execute_meta(task, play_context, iterator, target_host)
