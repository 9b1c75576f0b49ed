package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// lowPortsSetting is the first port that a process without CAP_NET_BIND_SERVICE
// may bind, for each network namespace (Documentation/networking/ip-sysctl.rst).
const lowPortsSetting = "net/ipv4/ip_unprivileged_port_start"

// firstHighPort is what the setting is in a new namespace.
const firstHighPort = 1024

// prepareLoopback raises the loopback of the namespace that the thread is in, and
// gives it the addresses of [PluginAddresses]. A kernel without IPv6 has only the
// first.
func prepareLoopback() error {
	if err := setLoopbackUp(); err != nil {
		return err
	}
	for _, address := range PluginAddresses() {
		err := addAddress(address)
		withoutIPv6 := address.Is6() && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM))
		if err != nil && !withoutIPv6 {
			return fmt.Errorf("add address %s to the loopback: %w", address, err)
		}
	}
	return nil
}

// addAddress adds one address to the loopback of the thread's namespace
// (rtnetlink(7), RTM_NEWADDR), which is usable at once.
func addAddress(address netip.Addr) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, newAddressMessage(address), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// The answer is a header and struct nlmsgerr, which begins with the error.
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	switch {
	case err != nil:
		return err
	case n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR:
		return errors.New("the kernel's answer is not an acknowledgement")
	}
	code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:]))
	if code == 0 || code == -int32(unix.EEXIST) {
		return nil
	}
	return unix.Errno(-code)
}

// newAddressMessage is a netlink message that adds a host address to interface 1,
// which is the loopback in every namespace.
func newAddressMessage(address netip.Addr) []byte {
	const (
		acknowledged = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL
		loopback     = 1
	)
	family := byte(unix.AF_INET)
	if address.Is6() {
		family = unix.AF_INET6
	}
	var body []byte
	body = append(body, family, byte(address.BitLen()), unix.IFA_F_PERMANENT|unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE)
	body = binary.NativeEndian.AppendUint32(body, loopback)
	for _, kind := range []uint16{unix.IFA_LOCAL, unix.IFA_ADDRESS} {
		value := address.AsSlice()
		body = binary.NativeEndian.AppendUint16(body, uint16(unix.SizeofRtAttr+len(value)))
		body = binary.NativeEndian.AppendUint16(body, kind)
		body = append(body, value...)
	}
	var header []byte
	header = binary.NativeEndian.AppendUint32(header, uint32(unix.SizeofNlMsghdr+len(body)))
	header = binary.NativeEndian.AppendUint16(header, unix.RTM_NEWADDR)
	header = binary.NativeEndian.AppendUint16(header, acknowledged)
	header = binary.NativeEndian.AppendUint32(header, 1) // sequence number
	header = binary.NativeEndian.AppendUint32(header, 0) // to the kernel
	return append(header, body...)
}

// openLowPorts permits binding every port in the thread's network namespace. A
// container's /proc/sys is often mounted read-only; a proc file system of the
// sidecar's own, which is mounted nowhere, is not.
func openLowPorts() error {
	file, err := os.OpenFile("/proc/sys/"+lowPortsSetting, os.O_WRONLY, 0)
	if err != nil {
		var detached error
		if file, detached = openDetachedSetting(); detached != nil {
			return fmt.Errorf("permit ports below %d: %w", firstHighPort, errors.Join(err, detached))
		}
	}
	_, err = file.WriteString("0")
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("permit ports below %d: %w", firstHighPort, err)
	}
	return nil
}

// openDetachedSetting opens the setting in a proc file system that is mounted
// nowhere (fsmount(2), Linux 5.2).
func openDetachedSetting() (*os.File, error) {
	context, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open proc file system: %w", err)
	}
	defer func() { _ = unix.Close(context) }()
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("make proc file system: %w", err)
	}
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount proc file system: %w", err)
	}
	defer func() { _ = unix.Close(mount) }()
	fd, err := unix.Openat(mount, "sys/"+lowPortsSetting, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open sys/%s: %w", lowPortsSetting, err)
	}
	return os.NewFile(uintptr(fd), lowPortsSetting), nil
}

// hasLowPort reports whether any port takes a privilege to bind by default.
func hasLowPort(ports []uint16) bool {
	return slices.ContainsFunc(ports, func(port uint16) bool { return port < firstHighPort })
}
