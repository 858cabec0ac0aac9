"""The moments of an optimizer by name."""


def slot_variables(optimizer):
    """Moments under the names they have in the original's checkpoints, "<variable.path>/<slot>".

    Empty before the optimizer is built.
    """
    if not optimizer.built:
        return {}
    moments = zip(optimizer._trainable_variables, optimizer._m, optimizer._v, strict=True)
    return {
        f"{variable.path}/{name}": moment
        for variable, *both in moments
        for name, moment in zip(optimizer.slot_names, both, strict=True)
    }
