package redfish

import (
	"context"
	"net"
	"slices"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Inventory walks EthernetInterfaces of the system and, over its chassis, NetworkAdapters and their
// NetworkDeviceFunctions (or, on schema 1.12 on, Ports). Parts a BMC does not have stay empty; a part
// that fails in another way fails the whole, so that half an inventory is never taken for all.
func (d *Driver) Inventory(ctx context.Context) (driver.Inventory, error) {
	d.c.requests = 0
	s, _, err := d.read(ctx)
	if err != nil {
		return driver.Inventory{}, err
	}
	inv := d.identity(s)
	if err := d.ethernet(ctx, s.EthernetInterfaces.ID, &inv); err != nil {
		return inv, err
	}
	for _, ch := range s.Links.Chassis {
		if err := d.adapters(ctx, ch.ID, &inv); err != nil {
			return inv, err
		}
	}
	return inv, nil
}

func (d *Driver) identity(s system) driver.Inventory {
	inv := driver.Inventory{UUID: strings.ToLower(strings.TrimSpace(s.UUID)), Manufacturer: strings.TrimSpace(s.Manufacturer),
		Model: strings.TrimSpace(s.Model), Serial: strings.TrimSpace(s.SerialNumber)}
	if d.quirks.skuSerial && s.SKU != "" {
		inv.Serial = strings.TrimSpace(s.SKU)
	}
	return inv
}

// optional treats a resource that is not there as empty.
func optional(err error) error {
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) {
		return nil
	}
	return err
}

func (d *Driver) ethernet(ctx context.Context, link string, inv *driver.Inventory) error {
	if link == "" {
		return nil
	}
	members, err := d.c.members(ctx, link)
	if err != nil {
		return optional(err)
	}
	for _, m := range members {
		var e struct {
			ID                  string `json:"Id"`
			MACAddress          string
			PermanentMACAddress string
		}
		if _, err := d.c.get(ctx, m, &e); err != nil {
			if err := optional(err); err != nil {
				return err
			}
			continue
		}
		addNIC(inv, e.ID, e.PermanentMACAddress, e.MACAddress)
	}
	return nil
}

func (d *Driver) adapters(ctx context.Context, chassis string, inv *driver.Inventory) error {
	var ch struct{ NetworkAdapters ref }
	if _, err := d.c.get(ctx, chassis, &ch); err != nil {
		return optional(err)
	}
	if ch.NetworkAdapters.ID == "" {
		return nil
	}
	adapters, err := d.c.members(ctx, ch.NetworkAdapters.ID)
	if err != nil {
		return optional(err)
	}
	for _, a := range adapters {
		var na struct{ NetworkDeviceFunctions, Ports ref }
		if _, err := d.c.get(ctx, a, &na); err != nil {
			if err := optional(err); err != nil {
				return err
			}
			continue
		}
		for _, list := range []string{na.NetworkDeviceFunctions.ID, na.Ports.ID} {
			if err := d.functions(ctx, list, inv); err != nil {
				return err
			}
		}
	}
	return nil
}

// functions reads NetworkDeviceFunctions or Ports: both carry the addresses, in members of their own
// names.
func (d *Driver) functions(ctx context.Context, link string, inv *driver.Inventory) error {
	if link == "" {
		return nil
	}
	members, err := d.c.members(ctx, link)
	if err != nil {
		return optional(err)
	}
	for _, m := range members {
		var f struct {
			ID           string `json:"Id"`
			Ethernet     struct{ PermanentMACAddress, MACAddress string }
			FibreChannel struct {
				PermanentWWPN, WWPN     string
				AssociatedWorldWideName []string `json:"AssociatedWorldWideNames"`
			}
		}
		if _, err := d.c.get(ctx, m, &f); err != nil {
			if err := optional(err); err != nil {
				return err
			}
			continue
		}
		addNIC(inv, f.ID, f.Ethernet.PermanentMACAddress, f.Ethernet.MACAddress)
		wwpns := append([]string{f.FibreChannel.PermanentWWPN, f.FibreChannel.WWPN}, f.FibreChannel.AssociatedWorldWideName...)
		for _, w := range wwpns {
			if addHBA(inv, f.ID, w) {
				break
			}
		}
	}
	return nil
}

// addNIC adds the first address that parses, once.
func addNIC(inv *driver.Inventory, name string, macs ...string) {
	for _, s := range macs {
		mac, err := net.ParseMAC(strings.TrimSpace(s))
		if err != nil || len(mac) != 6 || allZero(mac) {
			continue
		}
		if !slices.ContainsFunc(inv.NICs, func(n driver.NIC) bool { return slices.Equal(n.MAC, mac) }) {
			inv.NICs = append(inv.NICs, driver.NIC{Name: name, MAC: mac})
		}
		return
	}
}

// addHBA reports whether s is a WWPN; it adds it once, in the colon form.
func addHBA(inv *driver.Inventory, name, s string) bool {
	s = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(s)), "0x")
	if len(s) == 16 {
		var parts []string
		for i := 0; i < 16; i += 2 {
			parts = append(parts, s[i:i+2])
		}
		s = strings.Join(parts, ":")
	}
	wwpn, err := net.ParseMAC(s)
	if err != nil || len(wwpn) != 8 || allZero(wwpn) {
		return false
	}
	w := wwpn.String()
	if !slices.ContainsFunc(inv.HBAs, func(h driver.HBA) bool { return h.WWPN == w }) {
		inv.HBAs = append(inv.HBAs, driver.HBA{Name: name, WWPN: w})
	}
	return true
}

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) }
