package ebpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// unmediatedAfter is for how long a connection may wait for the sidecar to take it.
const unmediatedAfter = time.Second

// waiting is a connection that the kernel allowed and that the sidecar has
// not taken yet.
type waiting struct {
	key   hooksPeerKey
	entry hooksPeer
}

// listWaiting lists those connections. Connections that come or go during the listing may be
// missed. The list is read several times a second: where nothing waits, one call of the
// kernel shows it without the buffers of a batch.
func (w *collection) listWaiting() ([]waiting, error) {
	const atOnce = 512
	peers := w.peers
	var first hooksPeerKey
	if err := peers.NextKey(nil, &first); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	var all []waiting
	var cursor ebpf.MapBatchCursor
	keys, entries := make([]hooksPeerKey, atOnce), make([]hooksPeer, atOnce)
	for {
		n, err := peers.BatchLookup(&cursor, keys, entries, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("list connections: %w", err)
		}
		for i := range n {
			all = append(all, waiting{keys[i], entries[i]})
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) { // that was the end
			return all, nil
		}
	}
}

// forgetPeers drops the connections that a sidecar before this one did not
// take: its end was theirs.
func (w *collection) forgetPeers() error {
	left, err := w.listWaiting()
	if err != nil {
		return err
	}
	for _, one := range left {
		err := w.peers.Delete(one.key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("forget connections: %w", err)
		}
		atomic.AddUint64(&w.shared.tally.Abandoned, 1)
	}
	return nil
}

// pending counts the connections that have not waited too long.
func (w *collection) pending() (uint64, error) {
	all, err := w.listWaiting()
	if err != nil {
		return 0, err
	}
	var n uint64
	for _, one := range all {
		if !isUnmediated(one.entry.Since, bootTime()) {
			n++
		}
	}
	return n, nil
}

func isUnmediated(since, now uint64) bool { return now > since && now-since > uint64(unmediatedAfter) }

// bootTime is the clock of what the programs write down: CLOCK_BOOTTIME, in ns.
func bootTime() uint64 {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return uint64(now.Nano())
}

// goneAfter is how old an entry has to be for its socket to be looked for: a
// connect is written down a moment before its socket can be found.
const goneAfter = 5 * time.Second

// maxProbed is for how many sockets one scan looks; the others come next.
const maxProbed = 2048

// dropGone drops the entries of connections that cannot be accepted any more: the
// sidecar ended them without asking, or the plugin did before it was accepted,
// and the plugin's socket is gone.
func (c *socketScan) dropGone(w *collection) error {
	all, err := w.listWaiting()
	if err != nil {
		return err
	}
	var old []waiting
	now := bootTime()
	doomed := c.programs.Maps["verdicts"]
	for _, one := range all {
		if since := one.entry.Since; since < now && now-since > uint64(goneAfter) && len(old) < maxProbed {
			if err := doomed.Put(one.entry.Cookie, verdictProbe); err != nil {
				return fmt.Errorf("look for connections: %w", err)
			}
			old = append(old, one)
		}
	}
	if len(old) == 0 {
		return nil
	}
	walk := func() error { return iterate(c.programs.Programs["seek_tcp"]) }
	err = c.network.Do(walk)
	for _, one := range old {
		var state uint32
		lost := doomed.LookupAndDelete(one.entry.Cookie, &state)
		if err == nil && lost == nil && state == verdictProbe {
			err = w.dropPeer(one)
		}
		err = errors.Join(err, lost)
	}
	if err != nil {
		return fmt.Errorf("look for connections: %w", err)
	}
	return nil
}

// dropPeer drops an entry, unless it is another's by now.
func (w *collection) dropPeer(one waiting) error {
	var entry hooksPeer
	peers := w.peers
	err := peers.Lookup(one.key, &entry)
	if err == nil && entry.Cookie == one.entry.Cookie {
		err = peers.Delete(one.key)
		if err == nil {
			atomic.AddUint64(&w.shared.tally.Abandoned, 1)
		}
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Unmediated names the connections of the plugin that the kernel allowed to the
// sidecar more than a second ago and that the sidecar did not take: it does not
// accept, it does not ask [Confinement.Identify], or its queue is full. One whose socket
// is gone counts as abandoned some seconds later. It also names the sockets that
// the last scan found and that still stand.
func (c *Confinement) Unmediated() ([]UnmediatedConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("list unmediated connections: %w", os.ErrClosed)
	}
	all, err := c.programs.listWaiting()
	if err != nil {
		return nil, fmt.Errorf("list unmediated connections: %w", err)
	}
	now := bootTime()
	var strays []UnmediatedConn
	for _, one := range all {
		if !isUnmediated(one.entry.Since, now) {
			continue
		}
		strays = append(strays, UnmediatedConn{
			PID: one.entry.Pid, Comm: cString(one.entry.Comm[:]), Since: c.bootTime.Add(time.Duration(one.entry.Since)),
			Original: userAddress(one.entry.Original.W, one.entry.OriginalPort),
			Why:      "the sidecar did not take it",
		})
	}
	return append(strays, c.foundSockets...), nil
}
