package ebpf

// The objects are committed, so that neither a build nor a user needs a compiler for BPF. To make them again (Debian: clang,
// llvm, libbpf-dev, linux-libc-dev) run `go generate ./ebpf`.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -tags linux -type event -type tally -type setting -type peer_key -type peer -type limit -type destination hooks bpf/hooks.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -tags linux -type socket_name -type tree_key -type tree unix bpf/unix.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -tags linux calls bpf/calls.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -tags linux -type uncounted_calls -type prepare_args callwatch bpf/callwatch.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -tags linux proctrack bpf/proctrack.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -target bpfel -tags linux -type socket_entry -type connected socketscan bpf/socketscan.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
