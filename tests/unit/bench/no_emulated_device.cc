#include "tests/unit/bench/emulated_device.h"

namespace qserve::bench {

worker::exec::BackendFactory EmulatedDevice() { return nullptr; }

}  // namespace qserve::bench
