package ebpf

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// AttachEmptyTrace attaches a program that does nothing to a tracepoint, until what it
// returns is closed: the floor that benchmarks compare the system call counter (sys_exit)
// and what stands in for it (sched_switch) with. It needs CAP_BPF and CAP_PERFMON.
func AttachEmptyTrace(tracepoint string) (io.Closer, error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "empty", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: tracepoint, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load empty program: %w", err)
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err = errors.Join(err, program.Close()); err != nil {
		return nil, fmt.Errorf("attach empty program: %w", err)
	}
	return l, nil
}

// measureTrace measures how long the cheapest system call takes, and how much longer while a
// program is attached where the system call counter is, for every process of the host.
func measureTrace() (call, added time.Duration, err error) {
	const rounds = 5
	plain, traced := time.Duration(forever), time.Duration(forever)
	for range rounds {
		plain = min(plain, fastestCall())
		empty, err := AttachEmptyTrace("sys_exit")
		if err != nil {
			return 0, 0, err
		}
		traced = min(traced, fastestCall())
		if err := empty.Close(); err != nil {
			return 0, 0, fmt.Errorf("detach empty program: %w", err)
		}
	}
	return plain, max(traced-plain, 0), nil
}
