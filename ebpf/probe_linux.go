package ebpf

type selfTest struct{ X int }

func (*selfTest) run() error { return nil }
