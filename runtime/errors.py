"""Every kind of failure the runtime reports, one class each; messages say expected and found."""


class InfoptRuntimeError(RuntimeError):
    """Root of the runtime's errors."""


class PlanError(InfoptRuntimeError):
    """A plan is malformed; the message names the place inside the plan."""


class SizeError(InfoptRuntimeError):
    """A size expression divides by zero, overflows 64 bits, or a buffer gets a negative size."""


class InputMismatch(InfoptRuntimeError, TypeError):
    """A call's input is not what the plan was made for; names the input, expected and found."""


class InputOverlap(InputMismatch):
    """An input that the plan writes shares memory with another input."""


class InputUnaligned(InputMismatch):
    """An input for a GPU begins at an odd address, and cannot be copied to another."""


class KernelError(InfoptRuntimeError):
    """A kernel found its data invalid (an index out of range, for example)."""


class KernelIndexError(KernelError, IndexError):
    """A kernel found an index out of range."""


class KernelValueError(KernelError, ValueError):
    """A kernel found a value it must refuse."""


class BadTokens(InfoptRuntimeError, ValueError):
    """A prompt or next token is not what the model was made for; names it, expected and found."""


class TooManySequences(InfoptRuntimeError, ValueError):
    """More sequences at once than a compiled model was made for."""


class ContextFull(InfoptRuntimeError):
    """More tokens, or hops of a signal, than the state of a compiled model has room for."""


class OverBudget(InfoptRuntimeError):
    """A call needs more memory than its program may use, in however small parts it is run."""


class StaleState(InfoptRuntimeError):
    """A state that was stepped already: its memory belongs to the state that the step gave."""


class LibraryError(InfoptRuntimeError):
    """A shared library or one of its kernels cannot be had."""


class DeviceMissing(InfoptRuntimeError):
    """A program needs a GPU that this machine does not have."""


class LaunchFailed(InfoptRuntimeError):
    """A GPU's driver refused to launch a kernel."""


class CannotRecord(InfoptRuntimeError):
    """A run does something that a CUDA graph cannot hold."""


class ArtifactError(InfoptRuntimeError):
    """Root of the reasons for which an artifact is refused."""


class ArtifactUnsafe(ArtifactError):
    """An artifact reaches outside its folder or holds what it must not: links, odd names."""


class ArtifactTooNew(ArtifactError):
    """An artifact was written in a format this version does not know."""


class ArtifactCorrupt(ArtifactError):
    """An artifact's files are missing, cut short, changed, or malformed."""


class ArtifactIncompatible(ArtifactError):
    """An artifact has nothing that this machine can run."""


class ArtifactUntrusted(ArtifactError):
    """A signature is missing, is not by the key, or is for other content."""


class GoldenMismatch(ArtifactError):
    """A stored input does not give the stored output here; names the output, and how far it is."""


class AdapterError(InfoptRuntimeError, ValueError):
    """Root of the reasons for which an adapter cannot be loaded or used."""


class AdapterMismatch(AdapterError):
    """An adapter does not fit the room there is for it; names the layer, expected and found."""


class AdapterUnsupported(AdapterError):
    """An adapter of a kind that is more than two factors added to linear layers."""


class AdaptersFull(AdapterError):
    """Every slot has an adapter, or one that was unloaded and is still in use."""


class UnknownAdapter(AdapterError):
    """No adapter of that name is loaded; names those that are."""


class WeightsMismatch(InfoptRuntimeError, ValueError):
    """New weights do not fit the program; names them, expected and found."""
