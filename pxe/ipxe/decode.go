package ipxe

import (
	"net/netip"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// File is a download of a script.
type File struct {
	Name string // --name, or empty
	URL  string
	Args []string // what follows the URL: the command line of a kernel
	// Replace says that a script which is chained takes the place of this one.
	Replace bool
}

// DecodeFile reads the arguments of kernel, initrd and chain.
func DecodeFile(args []string) (File, error) {
	var f File
	for len(args) >= 2 {
		switch args[0] {
		case "--name":
			f.Name, args = args[1], args[2:]
			continue
		case "--replace":
			f.Replace, args = true, args[1:]
			continue
		case "--autofree":
			args = args[1:]
			continue
		}
		break
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return File{}, fault.Newf(fault.Invalid, "no URL in %q", strings.Join(args, " "))
	}
	f.URL, f.Args = args[0], args[1:]
	return f, CheckURL(f.URL)
}

// SANBoot is what a sanboot command names: an iSCSI target, an HTTP disk image, or a local drive.
type SANBoot struct {
	Target *Target // without its initiator, which is a setting
	URL    string
	Drive  string
}

// DecodeSAN reads the arguments of sanboot.
func DecodeSAN(args []string) (SANBoot, error) {
	var s SANBoot
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--no-describe" || a == "--keep":
		case a == "--drive" && i+1 < len(args):
			i++
			s.Drive = args[i]
		case strings.HasPrefix(a, "iscsi:"):
			t, err := decodeTarget(strings.TrimPrefix(a, "iscsi:"))
			if err != nil {
				return SANBoot{}, err
			}
			s.Target = &t
		case strings.HasPrefix(a, "http"):
			if err := CheckURL(a); err != nil {
				return SANBoot{}, err
			}
			s.URL = a
		default:
			return SANBoot{}, fault.Newf(fault.Unsupported, "sanboot argument %q", a)
		}
	}
	if s == (SANBoot{}) {
		return SANBoot{}, fault.New(fault.Invalid, "sanboot names nothing to boot")
	}
	return s, nil
}

// decodeTarget reads server:protocol:port:LUN:name (RFC 4173 section 5); the name has colons itself.
func decodeTarget(uri string) (Target, error) {
	p := strings.SplitN(uri, ":", 5)
	if len(p) != 5 {
		return Target{}, fault.Newf(fault.Invalid, "iSCSI URI %q has not five parts", uri)
	}
	addr, err := netip.ParseAddr(p[0])
	if err != nil || !addr.Is4() {
		return Target{}, fault.Newf(fault.Invalid, "iSCSI server %q is no IPv4 address", p[0])
	}
	port := uint64(3260)
	if p[2] != "" {
		if port, err = strconv.ParseUint(p[2], 10, 16); err != nil || port == 0 {
			return Target{}, fault.Newf(fault.Invalid, "iSCSI port %q", p[2])
		}
	}
	lun := uint64(0)
	if p[3] != "" {
		if lun, err = strconv.ParseUint(p[3], 16, 8); err != nil {
			return Target{}, fault.Newf(fault.Invalid, "iSCSI LUN %q", p[3])
		}
	}
	return Target{Portal: netip.AddrPortFrom(addr, uint16(port)), LUN: uint16(lun), Name: p[4]}, CheckName(p[4])
}
