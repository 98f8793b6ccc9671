"""The DMA domains by name: what ``--dma-domain`` chooses from. A new kind is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from server.dma.address_space import PAGE_SHIFT
from server.dma.domain import DmaDomain
from server.dma.domains.noiommu import NoIommuDomain
from server.dma.domains.soft import SoftDomain
from server.dma.domains.type1 import Type1Domain
from server.dma.domains.vfio import VfioContainer
from server.dma.errors import DmaDomainUnavailable

ADDRESS_BITS: Final = 64
MakeDomain = Callable[[], DmaDomain]


@dataclass(frozen=True, slots=True)
class DomainOptions:
    """What the command line says of the domain: ``vfio_group`` or ``vfio_container`` (an fd) are for type1."""

    vfio_group: int | None = None
    vfio_container: int | None = None
    dma_bits: int = ADDRESS_BITS


def soft(_options: DomainOptions, _stack: ExitStack) -> MakeDomain:
    """Each client gets an aperture of its own."""
    return SoftDomain


def noiommu(_options: DomainOptions, _stack: ExitStack) -> MakeDomain:
    """Each client's pages are pinned apart. What is missing is said at once, not when the first client comes."""
    NoIommuDomain().close()
    return NoIommuDomain


def type1(options: DomainOptions, stack: ExitStack) -> MakeDomain:
    """All clients, one after another, use one container."""
    if options.vfio_container is not None:
        container = VfioContainer.adopt(options.vfio_container)
    elif options.vfio_group is not None:
        container = VfioContainer.open(options.vfio_group)
    else:
        raise DmaDomainUnavailable(
            "--dma-domain type1 needs --vfio-group N, the IOMMU group of the device that DMA is for, "
            "or --vfio-container FD"
        )
    stack.callback(container.close)
    make = partial(Type1Domain, container, options.dma_bits)
    make().close()
    return make


class DomainKind(NamedTuple):
    """A class of domains, and what gets one ready to be made for client after client."""

    domain: type[DmaDomain]
    prepare: Callable[[DomainOptions, ExitStack], MakeDomain]


DOMAINS: Final[Mapping[str, DomainKind]] = {
    kind.domain.name: kind
    for kind in (
        DomainKind(SoftDomain, soft),
        DomainKind(NoIommuDomain, noiommu),
        DomainKind(Type1Domain, type1),
    )
}


def open_domain(name: str, options: DomainOptions, stack: ExitStack) -> MakeDomain:
    """What makes a domain of kind ``name`` for each client; ``stack`` gives back what they share.

    Raises DmaDomainUnavailable: one line that names what is missing.
    """
    if name != Type1Domain.name and options != DomainOptions():
        raise DmaDomainUnavailable("--vfio-group, --vfio-container and --dma-bits are for --dma-domain type1")
    if not PAGE_SHIFT < options.dma_bits <= ADDRESS_BITS:
        raise DmaDomainUnavailable(
            f"--dma-bits {options.dma_bits}: choose {PAGE_SHIFT + 1} to {ADDRESS_BITS}"
        )
    return DOMAINS[name].prepare(options, stack)
