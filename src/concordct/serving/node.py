"""The DICOM node: C-ECHO, C-STORE of CT, and the reports of storage commitment; for listed peers from listed addresses.

The answer to C-STORE waits until the object is on disk (`inbox.py`). What a peer says of itself is checked before
anything it sends is looked at.
"""

from __future__ import annotations

import ipaddress
import socket as sockets
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from concordct.errors import ConcordctError, reason_of
from concordct.serving.commitment import Commitments
from concordct.serving.config import Config, DicomDestination, Peer, Tls
from concordct.serving.inbox import NO_ROOM, NOT_UNDERSTOOD, SUCCESS, Inbox
from concordct.serving.log import say
from concordct.volumes.arrived import CT_CLASSES, TRANSFER_SYNTAXES
from concordct.volumes.decode import plain

#: (result, source, reason) of A-ASSOCIATE-RJ (PS3.8 9.3.4).
WRONG_CALLED, WRONG_CALLING = (1, 1, 7), (1, 1, 3)
PDU_BYTES = 2**17
#: A name of a peer's address is looked up once in so many associations.
_NAMES = 256


@dataclass
class _Visit:
    """An association: what it brought, and the bytes of the message under way."""

    peer: Peer | None
    series: set[str] = field(default_factory=set)
    pending: int = 0


class _Server(ThreadedAssociationServer):
    """pynetdicom's server that hangs up on strangers and never waits for anybody without end.

    A peer that stops in the middle of a PDU, or of the TLS handshake, would hold its thread, or the whole server.
    """

    listed: Callable[[str], bool]

    def get_request(self) -> tuple[sockets.socket, tuple[str, int]]:
        """Accept; the handshake comes with the first byte read, on the association's own thread."""
        assert self.socket is not None
        line, address = self.socket.accept()
        line.settimeout(self.ae.network_timeout)
        if self.ssl_context is not None:
            line = self.ssl_context.wrap_socket(line, server_side=True, do_handshake_on_connect=False)
        return line, address

    def shutdown(self) -> None:
        """Take no more connections."""
        BaseServer.shutdown(self)
        self.server_close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether anybody at that address may call."""
        return self.listed(str(client_address[0]))


class Node:
    """Listens from `start` to `stop`."""

    def __init__(self, config: Config, inbox: Inbox, commitments: Commitments) -> None:
        self._config, self._inbox, self._commitments = config, inbox, commitments
        self._visits: dict[Any, _Visit] = {}
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self.refused = 0

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConcordctError : the address is taken or not ours, or the certificate cannot be used.
        """
        node = self._config.node
        ae = AE(ae_title=node.ae_title)
        ae.require_called_aet = True
        ae.maximum_associations = node.associations
        ae.maximum_pdu_size = PDU_BYTES
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = node.idle_s
        ae.add_supported_context(Verification)
        for sop_class in CT_CLASSES:
            ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        # The destination is the SCP of storage commitment, also when it calls us with its report (PS3.4 J.3.3).
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_EVENT_REPORT, self._commitments.reported),
            (evt.EVT_PDU_RECV, self._weigh),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._left),
            (evt.EVT_CONN_CLOSE, self._left),
        ]
        try:
            context = None if node.tls is None else server_context(node.tls)
            server: _Server = ae.make_server(  # type: ignore[assignment]
                (node.host, node.port), ssl_context=context, evt_handlers=handlers, server_class=_Server
            )
        except (OSError, ssl.SSLError) as error:
            raise ConcordctError(
                f"{node.host}:{node.port}: expected an address to listen at, found: {error.strerror}"
            ) from None
        server.listed = self._listed
        threading.Thread(target=server.serve_forever, name="node", daemon=True).start()
        self._server = server
        say("listening", host=node.host, port=node.port, peer=node.ae_title)

    def stop(self) -> None:
        """Take no more associations and end those under way."""
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.ae.active_associations:
                association.abort()

    @property
    def listening(self) -> bool:
        """Whether the server's thread is alive."""
        socket = None if self._server is None else self._server.socket
        return socket is not None and socket.fileno() >= 0

    def _listed(self, address: str) -> bool:
        hosts = [peer.address for peer in self._config.node.peers]
        hosts += [each.host for each in self._config.destinations if isinstance(each, DicomDestination)]
        if any(same_host(host, address) for host in hosts):
            return True
        self.refused += 1
        say("connection refused", level="warning", address=address, reason="unknown address")
        return False

    # ---- association -----------------------------------------------------------------------------------------------

    def _requested(self, event: Any) -> None:
        association = event.assoc
        requestor = association.requestor
        title, address = plain(requestor.primitive.calling_ae_title, 16), requestor.address
        peer = next(
            (each for each in self._config.node.peers if each.ae_title == title and same_host(each.address, address)),
            None,
        )
        reports = any(
            isinstance(each, DicomDestination) and each.ae_title == title and same_host(each.host, address)
            for each in self._config.destinations
        )
        if peer is None and not reports:
            self._reject(association, WRONG_CALLING, title, address, "unknown title or address")
        elif plain(requestor.primitive.called_ae_title, 16) != self._config.node.ae_title:
            self._reject(association, WRONG_CALLED, title, address, "called by another title")
        else:
            with self._lock:
                self._visits[association] = _Visit(peer)

    def _reject(self, association: Any, why: tuple[int, int, int], title: str, address: str, said: str) -> None:
        known = any(each.ae_title == title for each in self._config.node.peers)
        # The title of a stranger is text that anybody chose.
        say("association refused", level="warning", peer=title if known else None, address=address, reason=said)
        self.refused += 1
        association.acse.send_reject(*why)
        association.is_rejected = True
        association.kill()

    def _visit(self, association: Any) -> _Visit | None:
        with self._lock:
            return self._visits.get(association)

    def _weigh(self, event: Any) -> None:
        """End an association whose message grows beyond any CT object, before memory does."""
        visit = self._visit(event.assoc)
        values = getattr(event.pdu, "presentation_data_value_items", None)
        if visit is None or values is None:
            return
        visit.pending += sum(len(value.presentation_data_value) for value in values)
        if visit.pending > self._config.node.object_mb * 10**6:
            say("association ended", level="warning", address=event.assoc.requestor.address, reason="object too large")
            # This is the thread that would have to send the abort.
            threading.Thread(target=event.assoc.abort, daemon=True).start()

    def _released(self, event: Any) -> None:
        visit = self._visit(event.assoc)
        if visit is not None and visit.series:
            self._inbox.counted(sorted(visit.series), whole=visit.peer is not None and visit.peer.whole_series)
        self._left(event)

    def _left(self, event: Any) -> None:
        with self._lock:
            self._visits.pop(event.assoc, None)

    # ---- objects ---------------------------------------------------------------------------------------------------

    def _store(self, event: Any) -> int:
        visit = self._visit(event.assoc)
        if visit is None or visit.peer is None:
            return 0x0124  # refused: not authorized (PS3.7 9.1.1.1.9); a destination may report, not send
        visit.pending = 0
        try:
            request = event.request
            expected = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
            answer = self._inbox.take(request.DataSet.getbuffer(), meta=event.file_meta, expected=expected)
        except MemoryError:
            return NO_ROOM
        except Exception as error:
            say("object refused", level="error", reason=reason_of(error))
            return NOT_UNDERSTOOD
        if answer.status == SUCCESS and answer.series is not None:
            visit.series.add(answer.series)
        return answer.status


def same_host(expected: str, address: str) -> bool:
    """Whether an address is the one, in the network or of the name that is expected."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    try:
        return found in ipaddress.ip_network(expected, strict=False)
    except ValueError:
        return str(found) in _addresses(expected)


@lru_cache(maxsize=_NAMES)
def _addresses(name: str) -> frozenset[str]:
    try:
        return frozenset(str(info[4][0]) for info in sockets.getaddrinfo(name, None))
    except OSError:
        return frozenset()


def server_context(tls: Tls) -> ssl.SSLContext:
    """For those who call us; with an authority they must show a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authority)
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """For those whom we call."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.authority)
    context.load_cert_chain(tls.certificate, tls.key)
    return context
